"""What only makes other code faster; each part computes what plain torch computes."""
