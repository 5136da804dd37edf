"""Conversations of split learning: a network cut behind its stem, trained in several places.

What crosses is data: activations, cut gradients, logits and updates, each a message class of its own, so that the ledger
shows them apart. No autograd graph outlives a message: whoever gets a gradient computes its forward pass again.
"""
