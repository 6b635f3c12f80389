"""Parts of exported graphs: resizing inside of them, and quantization."""
