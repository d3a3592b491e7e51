"""What is in a store, told to operators: below the commands and the dashboard, which show it."""
