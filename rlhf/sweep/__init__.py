"""`chorus sweep`: hyperparameters of any fit or training, many workers on one record of trials."""
