package idtoken

import "net/http"

// Client returns an HTTP client for the provider, with the same bounds on size, time,
// redirects and addresses as for its keys. A login redeems its code with it. The
// caller closes its idle connections.
func (p Provider) Client(o Options) *http.Client { return newFetcher(p, o.RootCAs).client }
