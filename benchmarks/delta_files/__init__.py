"""Delta files beside their floor, the machine's ceiling and released tools: sizes, speeds, memory."""
