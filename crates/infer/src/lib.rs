//! Generation: sampler, decoding loop, streaming text.
