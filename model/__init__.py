"""Serving and the commands at the top; `training` makes weights, `measuring` says what they are worth."""
