package idtoken

import "net/http"

// Client reaches the provider under the bounds that its keys are fetched under:
// size, time, redirects and addresses. A login redeems its code through it. The
// caller closes its idle connections.
func (p Provider) Client(o Options) *http.Client { return newFetcher(p, o.RootCAs).client }
