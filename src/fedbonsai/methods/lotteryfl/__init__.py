"""LotteryFL: every client finds a ticket of its own, and shares only what its ticket keeps."""
