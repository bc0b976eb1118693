"""The one equation and its slots: items, objectives, temperatures, weightings."""
