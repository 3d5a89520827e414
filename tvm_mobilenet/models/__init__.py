"""Model families: names, layer tables, torch modules, weights and preprocessing."""
