"""One conditioned model: packed rows, log-probs, the gate from coefficients to z, sampling, storage."""
