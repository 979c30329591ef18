"""The ground floor: files, processes, memory, messages. It knows no model."""
