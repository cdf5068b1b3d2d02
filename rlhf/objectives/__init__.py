"""Pure mathematics of training: losses, advantages, KL control, divergences; arrays in, arrays out."""
