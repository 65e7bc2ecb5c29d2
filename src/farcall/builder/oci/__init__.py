"""Container images from and for elsewhere: registries and archives, as the Open Container Initiative specifies them."""
