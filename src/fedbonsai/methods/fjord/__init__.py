"""FjORD: ordered dropout, where each batch trains the first channels of the layers, of a width that is drawn."""
