"""Where images come from and go to.

`ports` says what a source and a target of images is. There are three of them: a repository of a
registry (`repository`, made by `client`), an image layout directory (`oci_layout`) and, as a source
only, a tar file of one (`oci_archive`). `resolve` leads from what a user typed to one image: place,
platform, manifest, config. What leaves a source is verified wherever a digest covers it: documents
and whole blobs are; a part of a blob is the caller's to check.

A request to a registry goes through
    client       one pool of connections; one `Repository` for each (name, access)
    repository   one name with one access; says who does what:
    manifests    documents, by tag or digest, fetched and pushed
    referrers    what refers to a manifest, listed by the registry or under a tag
    blob_reads   parts of blobs; blob_streams whole ones, blob_answers one request for either,
                 with the redirects that are still good
    upload       POST, PATCH, PUT; what broke off goes on, what failed is ended at the registry
    endpoints    mirrors, then the registry (`hosts` reads which): who is asked, and who is asked
                 when one fails (`health`); the whole is tried again as `retry` says
    connection   one host: finds the origin, authorizes, turns refusals into errors
    auth         challenges -> tokens, kept until shortly before they expire, renewed once for all
    credentials  users, passwords and identity tokens, from files and helper programs
    transport    one HTTP request: TLS, redirects, proxies (`proxies`), timeouts, limits
    names        addresses of hosts, found where a name service that hangs holds up nothing else
    arrivals     the bytes of a large answer, a quarter of a MiB at a time

Ranged reads of a blob, one host after the other:
  1. A host whose answer with the whole blob is being received has it in the `spool`: wait there.
  2. Else wait for a turn at this host (`turns`: requests and bytes in flight, readers first; each
     repository has a share, `fairness`). If the host fails while others wait, they go on to the
     next one.
  3. Ask for the range. 206: that is it. 200: the host ignores ranges, or is cold. The answer, with
     the connection it holds, is handed to the spool, and this read waits there like all others.
     Without room in the spool, what comes before the range is passed over. At a host known for
     this, the first read of a blob goes ahead, and others of the same blob wait for its status.
  4. Whoever finds the bytes to be wrong says so (`distrust`): if they came from a mirror, another
     host is asked for this blob from then on.

Rules:
  1. A credential or token goes to the origin (scheme, host, port) that asked for it, to the
     authorization service that it named, and nowhere else; never over plain HTTP to another
     machine unless the user has allowed that. Nothing learned with one access (tokens, signed
     URLs, spooled blobs) is used for another. What the user gave for the registry is not shown to a
     mirror, which has credentials of its own.
  2. No message, log record or repr holds a password, a token, or the query of a URL.
  3. Every body has a limit, enforced while it is read.
  4. Whatever fails is a LazyimgError; a RegistryError says whether trying again makes sense, and
     has been tried again before a caller sees it. How long a caller waits in all is the caller's
     decision: it cancels. Cancelling gives back the connection and the turn; a transfer to the
     spool goes on for the others, and ends when nobody has read it for a while.
  5. Work on files, and digests of whole blobs, are done in threads.
"""
