"""The protocol of fanotify's pre-content events, as bytes.

A read(2) of a group's fd gives several events: a process is about to read a range of a marked file
(FAN_PRE_ACCESS), and waits for an answer. Each comes with an fd of that file, whose number names
the event in the answer. `layout` declares the kernel's structures, `messages` gives them meaning.
Nothing here reads or writes a file.

Source: include/uapi/linux/fanotify.h, fanotify(7).
"""
