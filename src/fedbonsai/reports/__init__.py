"""Reports for people: curves, costs to a goal, and one page with everything, made from run folders alone."""
