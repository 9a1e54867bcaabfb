"""From learned conductances to a frozen convolutional front end that answers in one step."""
