//! The vocabulary of the upper floors: messages, sampling, and the traits a language model fulfils.
