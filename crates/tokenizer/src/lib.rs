//! Train, load, save and run tokenizers and chat templates.
