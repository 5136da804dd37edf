"""Online learning of the model's size: PruneFL's baseline after Han, Wang and Leung."""
