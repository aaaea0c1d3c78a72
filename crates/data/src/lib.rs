//! From files to batches: sources, cleaning, token shards, packing, the resumable loader, the garden.
