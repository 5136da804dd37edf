"""FedTiny on digits and a CIFAR-10 subset: settings, results, and specs/fedtiny check 8, check 9 and check 15 on them."""
