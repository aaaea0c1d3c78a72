//! Files models live in: safetensors, Hugging Face directories, atomic writes, memory maps.
