"""Shipped settings files; `fedbonsai cp` makes one your own."""
