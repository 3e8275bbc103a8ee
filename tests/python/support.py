"""Set-up that tests in several rooms share."""
