"""Where images come from and go to.

`ports` says what a source and a target of images is. There are three of them: a repository of a
registry (`repository`, made by `client`), an image layout directory (`oci_layout`) and, as a source
only, a tar file of one (`oci_archive`). `resolve` leads from what a user typed to one image: place,
platform, manifest, config. What leaves a source is verified wherever a digest covers it: documents
and whole blobs are; a part of a blob is the caller's to check.

A request to a registry goes through
    client       one pool of connections; one `Repository` for each (name, access)
    repository   manifests, ranged and streamed blobs; the redirects that are still good
    upload       POST, PATCH, PUT; what broke off goes on, what failed is ended at the registry
    connection   finds the origin, authorizes, turns refusals into errors, tries again (`retry`)
    auth         challenges -> tokens, kept until shortly before they expire, renewed once for all
    credentials  users, passwords and identity tokens, from files and helper programs
    transport    one HTTP request: TLS, redirects, timeouts, limits

Rules:
  1. A credential or token goes to the origin (scheme, host, port) that asked for it, to the
     authorization service that it named, and nowhere else; never over plain HTTP to another
     machine unless the user has allowed that. Nothing learned with one access (tokens, signed
     URLs) is used for another.
  2. No message, log record or repr holds a password, a token, or the query of a URL.
  3. Every body has a limit, enforced while it is read.
  4. Whatever fails is a LazyimgError; a RegistryError says whether trying again makes sense, and
     has been tried again before a caller sees it. How long a caller waits in all is the caller's
     decision: it cancels.
  5. Work on files, and digests of whole blobs, are done in threads.
"""
