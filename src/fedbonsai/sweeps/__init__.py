"""Many runs: settings x seeds, what they say together, and the search for the setting that serves best."""
