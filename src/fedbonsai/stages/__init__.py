"""Plain parts that methods call; nothing here knows a method or a fleet."""
