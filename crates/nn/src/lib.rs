//! Parts of networks: modules, linear, embedding, norms, attention, feed-forward, positions, KV cache, initialisation.
