# SPDX-License-Identifier: Apache-2.0
FROM golang:1.26.8-bookworm AS build
ARG VERSION=unknown
ARG TARGETOS=linux
ARG TARGETARCH
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY api api
COPY cmd cmd
COPY controllers controllers
COPY internal internal
ENV CGO_ENABLED=0 GOFLAGS=-trimpath
RUN for name in controller agent; do \
      GOOS=$TARGETOS GOARCH=$TARGETARCH go build \
        -ldflags "-s -w -X github.com/causeway-lb/causeway/internal/version.version=$VERSION" \
        -o /out/$name ./cmd/$name || exit 1; done

FROM scratch AS controller
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/controller /controller
USER 65532:65532
ENTRYPOINT ["/controller"]

# The agent speaks netlink itself: no shell, no nft binary in the image.
FROM scratch AS agent
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/agent /agent
ENTRYPOINT ["/agent"]
