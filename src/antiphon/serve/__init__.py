"""`antiphon serve`: a library of sounds behind HTTP, for the page beside this file and for programs.

```
request -> guard (rate, Host, Origin, token, size) -> routes -> library | files | worker process -> one answer
```

`server` runs what `app` puts together, with `settings`. `guard` stands before every request and `problems` makes one
line of what is refused; `limits` are its token buckets. `search_routes`, `sound_routes` and `about_routes` are thin and
speak `schemas`; `room` holds what they share and `shelf` one library. `searching` asks it, with `filters` as SQL and
`batching` gathering the texts of concurrent requests. `uploads` takes sounds in, which `worker` has decoded in a
process of its own (`decoding`: no torch there, limits on time and memory). `playing` gives bytes and ranges, `outlines`
waveforms, `maps` the map made in the background, `figures` what /metrics says.
"""
