"""Flags of an encoder that its rows carry and that tables act on."""

COLLAPSED = "collapsed"  # its features were (nearly) equal at the end of the training: never ranked
