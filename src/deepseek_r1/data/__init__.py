"""Training data of text models: records from files, examples with exact loss masks, packing, order, reports."""
