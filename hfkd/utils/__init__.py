"""The lowest layer: settings, files, devices, token targets. It imports nothing else of hfkd."""
