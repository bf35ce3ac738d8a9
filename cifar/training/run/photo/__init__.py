"""Classifiers for few photographs: a network that was pretrained on ImageNet, of which only the last layer is fitted."""
