"""One step: readings, spectra, comparisons over time, the frame."""
