"""Files of named arrays: safetensors, npz."""
