"""The ground floor: settings, files, devices, token targets. Imports nothing else of hfkd."""
