"""The secure sum: devices send masked fixed-point codes, and the server learns their sum and nothing else of them."""
