"""FedTiny on digits and a CIFAR-10 subset: settings, results, and the specification's checks 8, 9 and 15 on them."""
