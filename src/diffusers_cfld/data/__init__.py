"""Pictures and keypoints to train and test with."""
