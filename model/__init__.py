"""The network of Hilum: preprocessing, ResNet, training, calibration, gate and evaluation."""
