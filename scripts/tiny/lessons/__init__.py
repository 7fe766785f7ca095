"""What the embedded model was taught: one file for each kind of question, and what they share."""
