"""Turn what users have (pictures, keypoints) into what the models take."""
