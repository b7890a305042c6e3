"""Parts of networks and of their optimisation that two or more methods share."""
