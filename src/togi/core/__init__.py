"""What every unit may use: records, errors, settings, files, hashes, seeds and the terminal."""
