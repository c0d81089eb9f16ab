"""verl: the weights in its driver. ``covgrpo.verl`` is the plug-in that verl imports, and starts what is here."""
