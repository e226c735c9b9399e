"""Images as ``X``: every accepted form, read in batches of tensors.

========================= ==========================================================================================
file                      what it holds
========================= ==========================================================================================
``_forms.py``             recognises the form of ``X``
``_base.py``              what all forms have in common
``_pixels.py``            arrays and tensors of images
``_pictures.py``          sequences of pictures, decoded batch by batch
``_lazy.py``              data sets and columns of other libraries, as sequences of pictures
``_opening.py``           where one picture is: a file, a URL, bytes, a dict of these
``_decoding.py``          what becomes of one picture: orientation, transparency, depth
``_resampling.py``        one picture resized and cropped, strip by strip
========================= ==========================================================================================
"""
