"""What `hilum train` is made of: films, splits, augmentation, optimisation, the locator's teacher."""
